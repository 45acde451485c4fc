package charts

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// schema is as much of a JSON schema as is looked at here.
type schema struct {
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties any               `json:"additionalProperties"`
}

// covers requires that a schema knows every value there is a default of, and lets no other pass.
func covers(t *testing.T, path string, s schema, values map[string]any) {
	t.Helper()
	require.Equal(t, false, s.AdditionalProperties, "%s: a mistyped value would pass", path)
	for name, v := range values {
		require.Contains(t, s.Properties, name, "%s.%s is missing in values.schema.json", path, name)
		if inner, is := v.(map[string]any); is && len(s.Properties[name].Properties) > 0 {
			covers(t, path+"."+name, s.Properties[name], inner)
		}
	}
	for name := range s.Properties {
		if _, known := values[name]; path == ".Values" && name != "global" {
			require.True(t, known, "%s.%s has no default that would explain it", path, name)
		}
	}
}

func TestTheSchemaKnowsEveryValue(t *testing.T) {
	text, err := os.ReadFile("theseus/values.schema.json")
	require.NoError(t, err)
	s := schema{}
	require.NoError(t, json.Unmarshal(text, &s))
	text, err = os.ReadFile("theseus/values.yaml")
	require.NoError(t, err)
	values := map[string]any{}
	require.NoError(t, yaml.Unmarshal(text, &values))
	covers(t, ".Values", s, values)
}

func TestAMistypedValueIsRefused(t *testing.T) {
	for value, says := range map[string]string{
		"replica=3":                     "replica",
		"replicas=two":                  "replicas",
		"apiQPS=0":                      "apiQPS",
		"apiQPS=many":                   "apiQPS",
		"freeze.what=planned":           "freeze",
		"freeze.wat=Planned":            "wat",
		"watchNamespaces=team-a":        "watchNamespaces",
		"watchNamespaces={Team}":        "watchNamespaces",
		"logLevel=verbose":              "logLevel",
		"webhook.port=http":             "port",
		"webhook.enabled=no-thanks":     "enabled",
		"machines.karpentr=false":       "karpentr",
		"evidence.bukket=s3://x":        "bukket",
		"evidence.bucket=my-bucket":     "bucket",
		"evidence.keepCases=90d":        "keepCases",
		"imagePullSecrets={regcred}":    "imagePullSecrets",
		"resources.request.cpu=1":       "request",
		"env[0].nam=X":                  "env",
		"podAnnotations.answer=42":      "podAnnotations",
		"nodeSelector.one=true":         "nodeSelector",
		"operandImage=":                 "operandImage",
		"imagePullPolicy=IfNotPresentt": "imagePullPolicy",
	} {
		t.Run(value, func(t *testing.T) {
			_, errs, err := template(t, value)
			require.Error(t, err)
			require.Contains(t, errs, says)
			require.Contains(t, errs, "schema")
		})
	}
}

func TestGoodValuesAreLetIn(t *testing.T) {
	for name, values := range map[string][]string{
		"defaults": nil,
		"bucket":   {"evidence.bucket=s3://cases?region=eu-west-1", "evidence.keepTrails=1h30m", "serviceAccountAnnotations.eks\\.amazonaws\\.com/role-arn=arn:x"},
		"volume":   {"evidence.bucket=file:///var/lib/theseus/evidence", "evidence.volume.persistentVolumeClaim.claimName=evidence"},
		"registry": {"imagePullSecrets[0].name=regcred", "image=r.example/theseus:1", "operandImage=r.example/theseus:1-pg%d", "imagePullPolicy=Always"},
		"freeze":   {"freeze.what=All", "freeze.why=debugging"},
		"alerts":   {"alerts.enabled=true", "alerts.labels.release=prometheus"},
		"places":   {"nodeSelector.kubernetes\\.io/arch=arm64", "tolerations[0].key=a", "tolerations[0].operator=Exists", "priorityClassName=high"},
		"tracing":  {"env[0].name=OTEL_EXPORTER_OTLP_ENDPOINT", "env[0].value=http://collector:4317", "apiQPS=0.5", "logLevel=debug"},
		"a secret": {"env[0].name=KEY", "env[0].valueFrom.secretKeyRef.name=s", "env[0].valueFrom.secretKeyRef.key=k"},
		"small":    {"replicas=1", "webhook.enabled=false", "machines.karpenter=false", "resources.requests.cpu=1", "resources.limits=null"},
	} {
		t.Run(name, func(t *testing.T) { render(t, values...) })
	}
}
