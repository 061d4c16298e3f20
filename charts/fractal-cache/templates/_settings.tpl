{{/*
The site's settings, which `fractal-k8s launch` reads (fractal_k8s/manifest/settings.py).
What stands in .Values.settings has names of its own: the schema refuses those that are made here.
*/}}
{{- define "fractal-cache.settings" -}}
{{- $found := deepCopy (.Values.settings | default dict) -}}
{{- with $found.env -}}
{{- $texts := dict -}}
{{- range $name, $value := . -}}
{{- $_ := set $texts $name (include "fractal-cache.text" $value) -}}
{{- end -}}
{{- $_ := set $found "env" $texts -}}
{{- end -}}
{{- $_ := set $found "image" (include "fractal-cache.image" .) -}}
{{- $_ := set $found "image_pull_policy" .Values.image.pullPolicy -}}
{{- $_ := set $found "service_account" (include "fractal-cache.account" (dict "root" . "part" "worker")) -}}
{{- $_ := set $found "aggregator_account" (include "fractal-cache.account" (dict "root" . "part" "aggregator")) -}}
{{- $_ := set $found "store" .Values.store.uri -}}
{{- $_ := set $found "wandb_mode" .Values.wandb.mode -}}
{{- $given := dict
  "image_pull_secret" .Values.image.pullSecret
  "client_store" .Values.store.clientUri
  "store_secret" .Values.store.existingSecret
  "store_claim" .Values.store.existingClaim
  "wandb_project" .Values.wandb.project
  "wandb_entity" .Values.wandb.entity
  "wandb_secret" .Values.wandb.existingSecret
  "notify_secret" .Values.notify.existingSecret
  "queue" .Values.kueue.queue
  "queue_priority" .Values.kueue.priorityClass
  "aggregator_queue" .Values.kueue.cpuQueue
  "priority_class" .Values.priorityClass -}}
{{- if .Values.kueue.minParallelism -}}
{{- $_ := set $given "min_parallelism" .Values.kueue.minParallelism -}}
{{- end -}}
{{- range $key, $value := $given -}}
{{- if $value -}}
{{- $_ := set $found $key $value -}}
{{- end -}}
{{- end -}}
{{- if .Values.model.enabled -}}
{{- $_ := set $found "model_claim" .Values.model.claim.name -}}
{{- $_ := set $found "model_path" .Values.model.path -}}
{{- end -}}
{{- if .Values.dataset.enabled -}}
{{- $_ := set $found "dataset_claim" .Values.dataset.claim.name -}}
{{- $_ := set $found "dataset" .Values.dataset.path -}}
{{- end -}}
{{- with (include "fractal-cache.secretKeys" . | fromYaml) -}}
{{- $_ := set $found "secret_keys" . -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Variable -> key in its Secret, where the two differ. */}}
{{- define "fractal-cache.secretKeys" -}}
{{- $keys := dict
  "AWS_ACCESS_KEY_ID" .Values.store.secretKeys.accessKeyId
  "AWS_SECRET_ACCESS_KEY" .Values.store.secretKeys.secretAccessKey
  "WANDB_API_KEY" .Values.wandb.secretKey -}}
{{- range $variable, $key := $keys }}
{{- if ne $variable $key }}
{{ $variable }}: {{ $key | quote }}
{{- end }}
{{- end }}
{{- end -}}
