{{/*
A policy for pods: nobody reaches them, and they reach name servers, HTTPS outside and extraCidrs.
Standard policies know no host names, so that "outside" is everything but private networks.
Arguments: root, part, selector (YAML), inside (optional: no HTTPS outside), api (optional: the API
server too).
*/}}
{{- define "fractal-cache.networkPolicy" -}}
{{- with .root.Values.networkPolicy -}}
{{- if .enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "fractal-cache.fullname" $.root }}-{{ $.part }}
  namespace: {{ $.root.Release.Namespace | quote }}
  labels:
    {{- include "fractal-cache.labels" $.root | nindent 4 }}
spec:
  podSelector:
    {{- $.selector | nindent 4 }}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    # name servers, wherever they are: some run on the node
    - ports:
        - {protocol: UDP, port: 53}
        - {protocol: TCP, port: 53}
    {{- if not $.inside }}
    # object storage, W&B, the hub
    - ports:
        - {protocol: TCP, port: 443}
      to:
        - ipBlock:
            cidr: 0.0.0.0/0
            except:
              {{- toYaml .privateCidrs | nindent 14 }}
        - ipBlock:
            cidr: ::/0
            except:
              {{- toYaml .privateCidrsV6 | nindent 14 }}
    {{- end }}
    {{- if $.api }}
    # the API server, whose address only the cluster knows
    - ports:
        {{- range .apiServerPorts }}
        - {protocol: TCP, port: {{ int . }}}
        {{- end }}
    {{- end }}
    {{- range .extraCidrs }}
    - ports:
        {{- range .ports }}
        - {protocol: TCP, port: {{ int . }}}
        {{- end }}
      to:
        - ipBlock:
            cidr: {{ .cidr | quote }}
    {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
