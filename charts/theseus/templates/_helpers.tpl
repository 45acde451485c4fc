{{- define "theseus.selector" -}}
app.kubernetes.io/name: theseus
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "theseus.labels" -}}
{{ include "theseus.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Whom the permissions are given to. */}}
{{- define "theseus.operator" -}}
- kind: ServiceAccount
  name: theseus-operator
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* Whether all replicas write to one bucket: not when each has an emptyDir. */}}
{{- define "theseus.evidenceShared" -}}
{{- if or .Values.evidence.volume (and .Values.evidence.bucket (not (hasPrefix "file:" .Values.evidence.bucket))) -}}true{{- else -}}false{{- end -}}
{{- end -}}

{{/* Whose machines the operator may use: what rbac.yaml permits. */}}
{{- define "theseus.machines" -}}
{{- $whose := list -}}
{{- if .Values.machines.karpenter -}}{{- $whose = append $whose "karpenter" -}}{{- end -}}
{{- if .Values.machines.clusterAPI -}}{{- $whose = append $whose "clusterapi" -}}{{- end -}}
{{- join "," $whose -}}
{{- end -}}
