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
