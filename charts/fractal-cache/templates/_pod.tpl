{{/* Parts of a pod, as those of a sweep have them (fractal_k8s/manifest/templates/job.yaml.j2). */}}

{{/* Parts that may be empty, one below the other. Argument: a list of texts. */}}
{{- define "fractal-cache.join" -}}
{{- $kept := list -}}
{{- range . -}}
{{- with trim . -}}
{{- $kept = append $kept . -}}
{{- end -}}
{{- end -}}
{{- join "\n" $kept -}}
{{- end -}}

{{/* Beginning of a pod's spec. Arguments: root, part (account), token (optional). */}}
{{- define "fractal-cache.podHead" -}}
restartPolicy: Never
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
serviceAccountName: {{ include "fractal-cache.account" . | quote }}
{{- with .root.Values.image.pullSecret }}
imagePullSecrets:
  - name: {{ . | quote }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.priorityClass }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Kueue's labels of a Job that uses no GPU. */}}
{{- define "fractal-cache.queueLabels" -}}
{{- with .Values.kueue.cpuQueue }}
kueue.x-k8s.io/queue-name: {{ . | quote }}
{{- with $.Values.kueue.priorityClass }}
kueue.x-k8s.io/priority-class: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Nodes of a pod. Argument: fill or aggregator. */}}
{{- define "fractal-cache.nodes" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fractal-cache.containerHead" -}}
image: {{ include "fractal-cache.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/*
Plain variables of a pod; what libraries write goes to scratch, as the root is read-only. A kubelet
would replace $(NAME), so every $ is doubled.
Arguments: root, more (a map, or nothing; it wins).
*/}}
{{- define "fractal-cache.env" -}}
{{- $variables := dict
  "FRACTAL_K8S_IMAGE" (include "fractal-cache.image" .root)
  "FRACTAL_K8S_TERMINATION_LOG" "/dev/termination-log"
  "USER" "fractal-k8s"
  "LOGNAME" "fractal-k8s"
  "TMPDIR" "/tmp"
  "PYTHONDONTWRITEBYTECODE" "1"
  "HOME" "/scratch/home"
  "XDG_CACHE_HOME" "/scratch/cache"
  "HF_HOME" "/scratch/hf"
  "WANDB_DIR" "/scratch"
  "WANDB_CACHE_DIR" "/scratch/wandb/cache"
  "WANDB_CONFIG_DIR" "/scratch/wandb/config"
  "WANDB_DATA_DIR" "/scratch/wandb/data"
  "WANDB_ARTIFACT_DIR" "/scratch/wandb/artifacts"
  "TORCHINDUCTOR_CACHE_DIR" "/scratch/inductor"
  "TRITON_CACHE_DIR" "/scratch/triton"
  "MPLCONFIGDIR" "/scratch/matplotlib"
  "CUDA_CACHE_PATH" "/scratch/cuda" -}}
{{- range $name, $value := mergeOverwrite $variables (.more | default dict) }}
- {name: {{ $name | quote }}, value: {{ include "fractal-cache.text" $value | replace "$" "$$" | quote }}}
{{- end }}
{{- end -}}

{{/* Keys of the store, by name of their Secret. */}}
{{- define "fractal-cache.storeKeys" -}}
{{- with .Values.store.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.store.secretKeys.accessKeyId | quote }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.store.secretKeys.secretAccessKey | quote }}}}
{{- end }}
{{- end -}}

{{- define "fractal-cache.wandbKey" -}}
{{- with .Values.wandb.existingSecret }}
- name: WANDB_API_KEY
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.wandb.secretKey | quote }}}}
{{- end }}
{{- end -}}

{{- define "fractal-cache.hubToken" -}}
{{- with .Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.huggingFace.secretKey | quote }}}}
{{- end }}
{{- end -}}

{{/* Where the summary run of a sweep goes. */}}
{{- define "fractal-cache.wandbEnv" -}}
{{- if and .Values.wandb.project (ne .Values.wandb.mode "off") }}
- {name: FRACTAL_K8S_WANDB_PROJECT, value: {{ .Values.wandb.project | quote }}}
{{- with .Values.wandb.entity }}
- {name: FRACTAL_K8S_WANDB_ENTITY, value: {{ . | quote }}}
{{- end }}
- {name: FRACTAL_K8S_WANDB_MODE, value: {{ .Values.wandb.mode | quote }}}
{{- include "fractal-cache.wandbKey" . }}
{{- end }}
{{- end -}}

{{- define "fractal-cache.webhook" -}}
{{- with .Values.notify.existingSecret }}
- name: FRACTAL_K8S_WEBHOOK
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: url}}
{{- end }}
{{- end -}}

{{- define "fractal-cache.scratchMounts" -}}
- name: scratch
  mountPath: /scratch
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "fractal-cache.scratchVolumes" -}}
- name: scratch
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- end -}}

{{/* The store's claim, where it has one. Arguments: root, readOnly. */}}
{{- define "fractal-cache.storeMount" -}}
{{- if .root.Values.store.existingClaim }}
- name: store
  mountPath: /store
  readOnly: {{ .readOnly }}
{{- end }}
{{- end -}}

{{- define "fractal-cache.storeVolume" -}}
{{- with .root.Values.store.existingClaim }}
- name: store
  persistentVolumeClaim:
    claimName: {{ . | quote }}
    readOnly: {{ $.readOnly }}
{{- end }}
{{- end -}}
