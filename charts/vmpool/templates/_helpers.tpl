{{/* Beginning of the names of all objects: the release, and the chart where the release does not name it. */}}
{{- define "vmpool.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $chart .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $chart | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a part's objects. Takes (dict "root" $ "part" "operator"). */}}
{{- define "vmpool.name" -}}
{{- printf "%s-%s" (include "vmpool.fullname" .root) .part -}}
{{- end -}}

{{/* Labels that select a part's pods; they never change. Takes (dict "root" $ "part" "operator"). */}}
{{- define "vmpool.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* Labels of every object. Takes (dict "root" $ "part" "operator"). */}}
{{- define "vmpool.labels" -}}
{{- /* Ours win: selectors rest on them. */}}
{{- merge dict (include "vmpool.ownLabels" . | fromYaml) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{- define "vmpool.ownLabels" -}}
{{ include "vmpool.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: vmpool
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels and annotations of an object, and its namespace. Takes root, part, name, and
"namespace" "" for an object of none, "labels" and "annotations" of its own. */}}
{{- define "vmpool.metadata" -}}
{{- $annotations := merge dict (default dict .annotations) .root.Values.commonAnnotations -}}
name: {{ .name }}
{{- if not (hasKey . "namespace") }}
namespace: {{ .root.Release.Namespace }}
{{- else if .namespace }}
namespace: {{ .namespace }}
{{- end }}
labels:
  {{- $labels := include "vmpool.labels" . | fromYaml }}
  {{- toYaml (merge dict (default dict .labels) $labels) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Name of a part's service account. Takes root, part. */}}
{{- define "vmpool.account" -}}
{{- $account := (index .root.Values .part).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- include "vmpool.name" . -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "vmpool.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Settings as environment variables. Takes prefix and settings. */}}
{{- define "vmpool.settings" -}}
{{- range $name, $value := .settings }}
- name: {{ printf "%s%s" $.prefix (snakecase $name | upper) }}
  {{- /* toJson writes large numbers in full, and tables as the program reads them. */}}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end -}}

{{/* Environment that operator and gateway have in common. */}}
{{- define "vmpool.environment" -}}
- name: VMPOOL_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: VMPOOL_POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: VMPOOL_LOG_LEVEL
  value: {{ .Values.log.level }}
- name: VMPOOL_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.watchNamespace }}
- name: VMPOOL_WATCH_NAMESPACE
  value: {{ . }}
{{- end }}
{{- end -}}

{{/* The variables of a container: those of the user in the place of the chart's, for the server takes each name
once. Takes "chart", a text, and "extra". */}}
{{- define "vmpool.variables" -}}
{{- $taken := dict -}}
{{- range .extra }}{{ $_ := set $taken .name true }}{{ end -}}
{{- $kept := list -}}
{{- range fromYamlArray .chart -}}
{{- if not (hasKey $taken .name) }}{{ $kept = append $kept . }}{{ end -}}
{{- end -}}
{{- concat $kept .extra | toYaml -}}
{{- end -}}

{{/* Metadata of the pods of a part. Takes root, part. */}}
{{- define "vmpool.podMetadata" -}}
{{- $own := index .root.Values .part -}}
labels:
  {{- /* No version of the chart: a pod whose program stays the same need not be replaced. */}}
  {{- merge dict (include "vmpool.selector" . | fromYaml) $own.podLabels .root.Values.commonLabels | toYaml | nindent 2 }}
annotations:
  {{- merge dict $own.podAnnotations (dict "kubectl.kubernetes.io/default-container" .part) | toYaml | nindent 2 }}
{{- end -}}

{{/* What a pod has to be; by default it fits the restricted profile. */}}
{{- define "vmpool.podSecurity" -}}
{{- /* Not every Helm takes null out of the values; to the server it is no number. */}}
{{- $kept := dict -}}
{{- range $key, $value := .Values.podSecurityContext -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $kept $key $value }}{{ end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end -}}

{{- define "vmpool.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where a pod runs, and what nodes pull its image with. Takes root, part. */}}
{{- define "vmpool.placement" -}}
{{- $own := index .root.Values .part -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $own.spread.enabled }}
topologySpreadConstraints:
  {{- range $own.spread.topologyKeys }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ $own.spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "vmpool.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* The account's token, where programs look for it. It is mounted by hand, for this container alone. */}}
{{- define "vmpool.tokenVolume" -}}
- name: account
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end -}}

{{- define "vmpool.tokenMount" -}}
- name: account
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* The rules of a role, from deploy/rbac. Takes root and "role", returns everywhere, clusterRest, own. */}}
{{- define "vmpool.rules" -}}
{{- index (.root.Files.Get "files/rbac.yaml" | fromYaml) .role | toYaml -}}
{{- end -}}

{{/* Refuse combinations that could not work. */}}
{{- define "vmpool.checks" -}}
{{- $gateway := .Values.gateway -}}
{{- $asks := eq (default "rbac" $gateway.settings.authorization) "rbac" -}}
{{- if and .Values.watchNamespace .Values.rbac.create $gateway.enabled $asks (not .Values.rbac.clusterRest) -}}
{{- fail "watchNamespace: a gateway that asks the API server who may claim needs a right that no Role can hold. Set rbac.clusterRest=true, or gateway.settings.authorization=open (everybody who reaches it may claim), or gateway.enabled=false" -}}
{{- end -}}
{{- $auth := default "none" $gateway.settings.auth -}}
{{- if and $gateway.enabled (eq $auth "static") (not $gateway.users.secretName) (not $gateway.extraVolumes) -}}
{{- fail "gateway.settings.auth=static needs a users file: set gateway.users.secretName" -}}
{{- end -}}
{{- if and $gateway.service.nodePort (eq $gateway.service.type "ClusterIP") -}}
{{- fail "gateway.service.nodePort needs gateway.service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- end -}}
