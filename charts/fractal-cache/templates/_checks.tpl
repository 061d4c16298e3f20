{{/*
What no schema can say, or not in words: values that do not go together, and the texts that everyone
types. Each ends with what to do. No text is repeated that may hold a key.
*/}}
{{- define "fractal-cache.check" -}}
{{- if eq (.Values.image.tag | default "") "latest" -}}
{{- fail "image.tag: latest can change between two pods; name a version or, better, image.digest" -}}
{{- end -}}
{{- range $part := list "fill" "aggregator" "settings" -}}
{{- range $name, $value := (get $.Values $part | default dict).env -}}
{{- if regexMatch `(?i)(key|token|secret|passw|credential|webhook)` $name -}}
{{- fail (printf "%s.env.%s: looks like a secret, which must not stand in values; name a Secret that holds it" $part $name) -}}
{{- else if regexMatch `^FRACTAL_K8S_(IMAGE|TERMINATION_LOG|WANDB_)` $name -}}
{{- fail (printf "%s.env.%s: is set by the chart" $part $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if required "store.uri: where do outcomes go? Give --set store.uri=s3://BUCKET/PREFIX" .Values.store.uri -}}
{{- include "fractal-cache.checkStore" . -}}
{{- end -}}
{{- if .Values.model.enabled -}}
{{- include "fractal-cache.checkSource" (dict "root" . "part" "model") -}}
{{- end -}}
{{- if .Values.dataset.enabled -}}
{{- include "fractal-cache.checkSource" (dict "root" . "part" "dataset") -}}
{{- end -}}
{{- if and .Values.model.enabled .Values.dataset.enabled (eq .Values.model.claim.name .Values.dataset.claim.name) -}}
{{- fail "dataset.claim.name: the same claim as the model's; each cache has its own" -}}
{{- end -}}
{{- if and .Values.fill.replace (not .Values.fill.again) -}}
{{- fail "fill.replace: needs a fill.again, a word that this one upgrade is known by" -}}
{{- end -}}
{{- range $key := list "priorityClass" "minParallelism" -}}
{{- if and (get $.Values.kueue $key) (not $.Values.kueue.queue) -}}
{{- fail (printf "kueue.%s: needs a kueue.queue" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Options behind a bucket, as fractal_k8s/buckets.py knows them. */}}
{{- define "fractal-cache.bucketOptions" -}}
{{- $option := `(endpoint=[^&@\s]+|region=[^&@\s]+|addressing=(path|virtual))` -}}
(\?{{ $option }}(&{{ $option }})*)?
{{- end -}}

{{/* A bucket with a prefix: "true" or nothing. Argument: the URI. */}}
{{- define "fractal-cache.isBucket" -}}
{{- $s3 := printf `^s3://[^/?@:\s]+(/[^?@\s]*)?%s$` (include "fractal-cache.bucketOptions" .) -}}
{{- if or (regexMatch $s3 .) (regexMatch `^gs://[^/?@:\s]+(/[^?@\s]*)?(\?endpoint=[^&@\s]+)?$` .) -}}
true
{{- end -}}
{{- end -}}

{{/* BUCKET/PREFIX of a URI, whoever serves it and without options. */}}
{{- define "fractal-cache.place" -}}
{{- $plain := regexReplaceAll `\?.*$` . "" -}}
{{- regexReplaceAll `^(s3|gs)://` $plain "" | splitList "/" | compact | join "/" -}}
{{- end -}}

{{- define "fractal-cache.checkStore" -}}
{{- $store := .Values.store -}}
{{- $bucket := include "fractal-cache.isBucket" $store.uri -}}
{{- if not (or $bucket (regexMatch `^(file://)?/store(/[^?@\s]*)?$` $store.uri)) -}}
{{- fail "store.uri: must be s3://BUCKET/PREFIX, perhaps with ?endpoint=...&region=...&addressing=path or virtual, or gs://BUCKET/PREFIX, or /store/PREFIX in store.existingClaim; keys belong into store.existingSecret" -}}
{{- end -}}
{{- if not (or $bucket $store.existingClaim) -}}
{{- fail (printf "store.uri: %s lies in a claim; name it with store.existingClaim" $store.uri) -}}
{{- end -}}
{{- if and (hasPrefix "gs://" $store.uri) $store.existingSecret -}}
{{- fail "store.existingSecret: holds keys of S3; Google's storage is reached as the pods' own identity (serviceAccounts)" -}}
{{- end -}}
{{- with $store.clientUri -}}
{{- if not (or (include "fractal-cache.isBucket" .) (regexMatch `^(file://)?[^:?@\s]+$` .)) -}}
{{- fail "store.clientUri: must be a bucket as in store.uri, or a folder; keys belong into the environment of whoever reads it" -}}
{{- end -}}
{{- if and $bucket (include "fractal-cache.isBucket" .) (ne (include "fractal-cache.place" .) (include "fractal-cache.place" $store.uri)) -}}
{{- fail "store.clientUri: another bucket or prefix than store.uri: pods would write to one, and everyone else would look into the other; give both" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
What may fill a cache, as fractal_k8s/references.py and fractal_k8s/caches.py read it: a fill Job
would be made, and fail. Arguments: root, part (model, dataset).
*/}}
{{- define "fractal-cache.checkSource" -}}
{{- $source := get (get .root.Values .part) "source" -}}
{{- $options := include "fractal-cache.bucketOptions" . -}}
{{- $known := dict
  "model" (list `wandb:[^/:\s]+/[^/:\s]+/[^/:\s]+:[^/:\s]+` `hf:[^/:@\s]+(/[^/:@\s]+)?@[^:@\s]+(:[^:\s]+)?`
    (printf `s3://[^/?@:\s]+(/[^?@\s]*)?(@[0-9a-f]{12})?%s` $options) `/.*`)
  "dataset" (list `docvqa(@[^:@\s]+)?` `hf:[^/:@\s]+/[^/:@\s]+@[^:@\s]+` `conversations:/.*\.(jsonl|ndjson)`
    (printf `conversations:s3://[^/?@:\s]+/[^?@\s]*\.(jsonl|ndjson)(@[0-9a-f]{12})?%s` $options)) -}}
{{- $forms := dict
  "model" "wandb:ENTITY/PROJECT/NAME:VERSION, hf:REPO@REVISION, s3://BUCKET/PREFIX, or a folder such as /source/model"
  "dataset" "docvqa, docvqa@REVISION, hf:OWNER/NAME@REVISION, or conversations:FILE.jsonl with a whole path or an s3:// object" -}}
{{- if and $source (not (regexMatch (printf "^(%s)$" (get $known .part | join "|")) $source)) -}}
{{- fail (printf "%s.source: must be %s; empty if you fill the claim yourself" .part (get $forms .part)) -}}
{{- end -}}
{{- if and (regexMatch `^(conversations:)?/source(/|$)` ($source | default "")) (not .root.Values.fill.sourceClaim) -}}
{{- fail (printf "%s.source: %s lies in a claim; name it with fill.sourceClaim" .part $source) -}}
{{- end -}}
{{- end -}}
