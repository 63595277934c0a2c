{{- define "lite-detr.name" -}}
{{- default .Chart.Name .Values.nameOverride | replace "." "-" | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of all objects. Names of Services start with a letter and have no dots; 52 characters leave room for what is appended. */}}
{{- define "lite-detr.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $chart := include "lite-detr.name" . -}}
{{- $name = contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{- end -}}
{{- $name = $name | replace "." "-" -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- $name = printf "release-%s" $name -}}
{{- end -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "lite-detr.selector" -}}
app.kubernetes.io/name: {{ include "lite-detr.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" | trimSuffix "." | quote }}
{{- end -}}

{{- define "lite-detr.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "lite-detr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "lite-detr.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "lite-detr.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "lite-detr.image" -}}
{{- $tag := default (gt (int .Values.gpu.count) 0 | ternary "cuda" "cpu") .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "lite-detr.scheme" -}}
{{ empty .Values.tls.secret | ternary "http" "https" }}
{{- end -}}

{{- define "lite-detr.metricsPort" -}}
{{ empty .Values.metrics.port | ternary "http" "metrics" }}
{{- end -}}

{{/* A setting as text. Helm reads numbers as float64, which would be printed as 6.7108864e+07. */}}
{{- define "lite-detr.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{/* The settings of the service as a YAML map, by name. */}}
{{- define "lite-detr.settings" -}}
{{- $v := .Values -}}
{{- $all := dict "http_port" 8000 "grpc_port" 8001 "host" "0.0.0.0" -}}
{{- $_ := set $all "drain_delay_seconds" $v.drain.delaySeconds -}}
{{- $_ := set $all "drain_timeout_seconds" $v.drain.timeoutSeconds -}}
{{- if ne $v.model.source "builtin" }}{{ $_ := set $all "model" (printf "/models/%s" $v.model.path) }}{{ end -}}
{{- if $v.metrics.port }}{{ $_ := set $all "metrics_port" $v.metrics.port }}{{ end -}}
{{- if $v.apiKeys.secret }}{{ $_ := set $all "api_keys_file" (printf "/etc/lite-detr/api-keys/%s" $v.apiKeys.key) }}{{ end -}}
{{- if $v.tls.secret -}}
{{- $_ := set $all "tls_certificate_file" "/etc/lite-detr/tls/tls.crt" -}}
{{- $_ := set $all "tls_key_file" "/etc/lite-detr/tls/tls.key" -}}
{{- end -}}
{{- if $v.tls.clientCaSecret }}{{ $_ := set $all "tls_client_ca_file" "/etc/lite-detr/client-ca/ca.crt" }}{{ end -}}
{{- $gpus := int $v.gpu.count -}}
{{- $settings := default dict $v.settings -}}
{{- if and (gt $gpus 0) (not $settings.device) (not $settings.devices) -}}
{{- $devices := list -}}
{{- range until $gpus }}{{ $devices = append $devices (printf "cuda:%d" .) }}{{ end -}}
{{- $_ := set $all "devices" (join "," $devices) -}}
{{- end -}}
{{- range $name, $value := $settings -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $all $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := $all }}
{{ $name }}: {{ include "lite-detr.text" $value | quote }}
{{- end }}
{{- end -}}

{{/* Combinations that no schema can express. */}}
{{- define "lite-detr.check" -}}
{{- $v := .Values -}}
{{- $settings := default dict $v.settings -}}
{{- if and $v.tls.clientCaSecret (not $v.tls.secret) }}{{ fail "tls.clientCaSecret needs tls.secret" }}{{ end -}}
{{- if and $v.metrics.port (has (int $v.metrics.port) (list 8000 8001)) }}{{ fail "metrics.port must differ from 8000 and 8001, the ports of the container" }}{{ end -}}
{{- if eq (int $v.service.httpPort) (int $v.service.grpcPort) }}{{ fail "service.httpPort and service.grpcPort must differ" }}{{ end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) }}{{ fail "autoscaling.minReplicas is larger than autoscaling.maxReplicas" }}{{ end -}}
{{- if $v.metrics.serviceMonitor.enabled -}}
{{- if and $v.apiKeys.secret (not $v.metrics.serviceMonitor.apiKey.secret) }}{{ fail "the service requires API keys: metrics.serviceMonitor.apiKey.secret needs a key with the scope metrics" }}{{ end -}}
{{- if and $v.tls.clientCaSecret (not $v.metrics.serviceMonitor.tlsConfig) }}{{ fail "the service requires client certificates: metrics.serviceMonitor.tlsConfig needs one" }}{{ end -}}
{{- end -}}
{{- if and $v.networkPolicy.metricsClients (not $v.metrics.port) }}{{ fail "networkPolicy.metricsClients needs metrics.port; otherwise networkPolicy.clients applies to the metrics" }}{{ end -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.egress) -}}
{{- if $settings.label_studio_url }}{{ fail "settings.label_studio_url needs networkPolicy.egress to Label Studio (and to DNS), or networkPolicy.enabled=false" }}{{ end -}}
{{- if $settings.otlp_endpoint }}{{ fail "settings.otlp_endpoint needs networkPolicy.egress to the collector (and to DNS), or networkPolicy.enabled=false" }}{{ end -}}
{{- end -}}
{{- if and (has (toString $v.rollingUpdate.maxSurge) (list "0" "0%")) (has (toString $v.rollingUpdate.maxUnavailable) (list "0" "0%")) }}{{ fail "rollingUpdate.maxSurge and rollingUpdate.maxUnavailable must not both be 0" }}{{ end -}}
{{- if and $settings.model (ne $v.model.source "builtin") }}{{ fail "settings.model and model.source exclude each other" }}{{ end -}}
{{- end -}}

{{- define "lite-detr.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "lite-detr.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .Values.gpu.resource (int .Values.gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
