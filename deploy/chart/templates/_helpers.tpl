{{- define "fastderp.labels" -}}
app.kubernetes.io/name: fastderp
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fastderp.members" -}}
{{- $members := list -}}
{{- range $number := until (int .Values.replicas) -}}
{{- $host := printf "%s-%d" $.Release.Name $number -}}
{{- $members = append $members (printf "%s.%s/%s.%s-mesh.%s.svc" $host $.Values.domain $host $.Release.Name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $members -}}
{{- end -}}

{{- /* The Secret with the certificates of -certmode manual; empty without one. */ -}}
{{- define "fastderp.certificates" -}}
{{ .Values.certificates.tlsSecret | default .Values.certificates.secret }}
{{- end }}
