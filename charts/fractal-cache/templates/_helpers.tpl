{{/* Names and labels. */}}

{{- define "fractal-cache.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/*
What names begin with: at most 40 characters, so that the longest suffix fits in the 52 that the
name of a CronJob may have. A longer one is cut and gets a hash, so that no two become one. Dots,
which a release may have, are none of a pod's host name.
*/}}
{{- define "fractal-cache.fullname" -}}
{{- $name := include "fractal-cache.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- $full = .Values.fullnameOverride | default $full | replace "." "-" -}}
{{- if gt (len $full) 40 -}}
{{- $full = printf "%s-%s" ($full | trunc 31 | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "fractal-cache.labels" -}}
{{ include "fractal-cache.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: fractal-k8s
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end -}}

{{- define "fractal-cache.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fractal-cache.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/*
Labels of a pod, without versions: they would give a Job another name with every version.
Arguments: root, component.
*/}}
{{- define "fractal-cache.podLabels" -}}
{{ include "fractal-cache.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
A value as text. Numbers in files of values are floating ones, which would be written 1e+06.
*/}}
{{- define "fractal-cache.text" -}}
{{- if kindIs "string" . -}}
{{ . }}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{- define "fractal-cache.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of a service account. Arguments: root, part (worker, fill, aggregator). */}}
{{- define "fractal-cache.account" -}}
{{- $account := get .root.Values.serviceAccounts .part -}}
{{- if $account.name -}}
{{ $account.name }}
{{- else if $account.create -}}
{{ include "fractal-cache.fullname" .root }}-{{ .part }}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* A service account without a token. Arguments: root, part. */}}
{{- define "fractal-cache.serviceAccount" -}}
{{- $account := get .root.Values.serviceAccounts .part -}}
{{- if $account.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "fractal-cache.account" . | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "fractal-cache.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/*
A claim that outlives the release. Arguments: root, part (model, dataset).
*/}}
{{- define "fractal-cache.claim" -}}
{{- $cache := get .root.Values .part -}}
{{- if and $cache.enabled $cache.claim.create -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ $cache.claim.name | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "fractal-cache.labels" .root | nindent 4 }}
    app.kubernetes.io/component: cache-{{ .part }}
  annotations:
    helm.sh/resource-policy: keep
    {{- with $cache.claim.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  accessModes:
    {{- toYaml $cache.claim.accessModes | nindent 4 }}
  {{- with $cache.claim.storageClass }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources:
    requests:
      storage: {{ $cache.claim.size | quote }}
{{- end -}}
{{- end -}}

{{/* Those who may run sweeps. */}}
{{- define "fractal-cache.subjects" -}}
{{- range .Values.rbac.groups }}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: {{ . | quote }}}
{{- end }}
{{- range .Values.rbac.users }}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* A name for what belongs to no namespace. */}}
{{- define "fractal-cache.viewer" -}}
{{ .Release.Namespace }}-{{ include "fractal-cache.fullname" . }}-viewer
{{- end -}}
