{{/* Names, labels and references shared by the templates. */}}

{{- define "weir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/*
RELEASE-weir, or RELEASE where the release's name says weir already. A Service's name may have 63
characters, of which -metrics and -console take 8.
*/}}
{{- define "weir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "weir.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 55 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 55 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "weir.selectorLabels" -}}
app.kubernetes.io/name: {{ include "weir.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "weir.labels" -}}
{{ include "weir.selectorLabels" . }}
app.kubernetes.io/part-of: weir
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/*
weir.labelled (list $ "weir.labels" "operator.podLabels"): the chart's labels, then those of a value. A
key of both would be in the object twice, and selectors need the chart's.
*/}}
{{- define "weir.labelled" -}}
{{- $own := include (index . 1) (index . 0) -}}
{{- $path := index . 2 -}}
{{- $more := (index . 0).Values -}}
{{- range splitList "." $path }}{{ $more = get $more . }}{{ end -}}
{{- $own -}}
{{- with $more -}}
{{- range $key, $_ := . -}}
{{- if hasKey (fromYaml $own) $key -}}
{{- fail (printf "%s: leave %s out, which the chart sets itself" $path $key) -}}
{{- end -}}
{{- end }}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "weir.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "weir.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Who says as which user pods run: fixed or assigned. */}}
{{- define "weir.userIds" -}}
{{- if ne .Values.userIds "auto" -}}
{{- .Values.userIds -}}
{{- else if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
assigned
{{- else -}}
fixed
{{- end -}}
{{- end -}}

{{/* weir.image (list $ .Values.images.weir): one image reference. */}}
{{- define "weir.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}
