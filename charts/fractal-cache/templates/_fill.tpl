{{/* Whether there is anything to fill: "true" or nothing. */}}
{{- define "fractal-cache.fills" -}}
{{- if or (and .Values.model.enabled .Values.model.source) (and .Values.dataset.enabled .Values.dataset.source) -}}
true
{{- end -}}
{{- end -}}

{{/*
Name of the fill Job: with a hash of all that it is, as a Job cannot be changed, nor moved to another
queue. The same content has the same name, and another gets a Job of its own.
*/}}
{{- define "fractal-cache.fillName" -}}
{{- $all := printf "%s\n%s" (include "fractal-cache.fillSpec" .) (include "fractal-cache.queueLabels" .) -}}
{{ include "fractal-cache.fullname" . }}-fill-{{ $all | sha256sum | trunc 10 }}
{{- end -}}

{{- define "fractal-cache.fillSpec" -}}
{{- $caches := list -}}
{{- range $part := list "model" "dataset" -}}
{{- $cache := get $.Values $part -}}
{{- if and $cache.enabled $cache.source -}}
{{- $caches = append $caches (dict "part" $part "claim" $cache.claim.name "source" $cache.source) -}}
{{- end -}}
{{- end -}}
backoffLimit: {{ int .Values.fill.retries }}
activeDeadlineSeconds: {{ int .Values.fill.deadlineSeconds }}
ttlSecondsAfterFinished: {{ int .Values.fill.keepSeconds }}
# a pod is replaced once it is gone, so that two never fill one cache
podReplacementPolicy: Failed
podFailurePolicy:
  rules:
    # evicted, preempted or drained
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    # wrong options or settings, or corrupt files: another try would end the same way
    - action: FailJob
      onExitCodes:
        containerName: fill
        operator: In
        values: [2, 64, 65]
template:
  metadata:
    labels:
      {{- include "fractal-cache.podLabels" (dict "root" . "component" "cache-fill") | nindent 6 }}
    {{- with .Values.fill.again }}
    annotations:
      # another word is another Job
      fractal-k8s.io/fill-again: {{ include "fractal-cache.text" . | quote }}
    {{- end }}
  spec:
    {{- $head := include "fractal-cache.podHead" (dict "root" . "part" "fill") }}
    {{- include "fractal-cache.join" (list $head (include "fractal-cache.nodes" .Values.fill)) | nindent 4 }}
    containers:
      - name: fill
        {{- include "fractal-cache.containerHead" . | nindent 8 }}
        command: [fractal-k8s]
        args:
          - cache
          - fill
          - --root
          - /cache
          {{- range $caches }}
          - --{{ .part }}
          - {{ .source | replace "$" "$$" | quote }}
          {{- end }}
          {{- if .Values.fill.replace }}
          - --replace
          {{- end }}
        env:
          {{- $plain := include "fractal-cache.env" (dict "root" . "more" .Values.fill.env) }}
          {{- $wandb := include "fractal-cache.wandbKey" . }}
          {{- $hub := include "fractal-cache.hubToken" . }}
          {{- include "fractal-cache.join" (list $plain (include "fractal-cache.storeKeys" .) $wandb $hub) | nindent 10 }}
        resources:
          {{- toYaml .Values.fill.resources | nindent 10 }}
        volumeMounts:
          {{- range $caches }}
          - name: {{ .part }}
            mountPath: /cache/{{ .part }}
          {{- end }}
          {{- if .Values.fill.sourceClaim }}
          - name: source
            mountPath: /source
            readOnly: true
          {{- end }}
          {{- include "fractal-cache.scratchMounts" . | nindent 10 }}
    volumes:
      {{- range $caches }}
      - name: {{ .part }}
        persistentVolumeClaim:
          claimName: {{ .claim | quote }}
      {{- end }}
      {{- with .Values.fill.sourceClaim }}
      - name: source
        persistentVolumeClaim:
          claimName: {{ . | quote }}
          readOnly: true
      {{- end }}
      {{- include "fractal-cache.scratchVolumes" . | nindent 6 }}
{{- end -}}
