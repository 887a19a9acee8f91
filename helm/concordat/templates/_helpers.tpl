{{/* The prefix of all names. With the release called concordat it is concordat. */}}
{{- define "concordat.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What tells the pods of one component from all others. Takes a list of the root and the component. */}}
{{- define "concordat.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All labels of an object. Takes a list of the root and the component. */}}
{{- define "concordat.labels" -}}
{{- $root := index . 0 -}}
{{ include "concordat.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: concordat
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image by digest or tag. Takes a list of the image's values and the tag of an empty one. */}}
{{- define "concordat.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "concordat.serviceAccount" -}}
{{- default (printf "%s-operator" (include "concordat.fullname" .)) .Values.operator.serviceAccount.name -}}
{{- end -}}

{{/* Pod Security `restricted`, of a pod. */}}
{{- define "concordat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Pod Security `restricted`, of a container. */}}
{{- define "concordat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Labels of a pod: none that a new version of the chart alone would change, which would restart it. The webhook must not
keep the pods away on which it depends, in whichever namespace they are. Takes a list of the root, the component and labels
besides. */}}
{{- define "concordat.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "concordat.selector" . }}
app.kubernetes.io/part-of: concordat
concordat.dev/inject: disabled
{{- with merge (deepCopy (index . 2)) $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where a pod runs. Takes a list of the root, the component and the component's values. */}}
{{- define "concordat.placement" -}}
{{- $values := index . 2 -}}
{{- $placement := pick $values "nodeSelector" "tolerations" "affinity" -}}
{{- range $key, $value := $placement -}}{{- if not $value -}}{{- $placement = omit $placement $key -}}{{- end -}}{{- end -}}
{{- with $values.priorityClassName -}}{{- $placement = set $placement "priorityClassName" . -}}{{- end -}}
{{- with $values.topologySpreadConstraints -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "concordat.selector" $ | fromYaml)) -}}
{{- $spread := list -}}
{{- range . -}}{{- $spread = append $spread (merge (deepCopy .) $selector) -}}{{- end -}}
{{- $placement = set $placement "topologySpreadConstraints" $spread -}}
{{- end -}}
{{- with (index . 0).Values.imagePullSecrets -}}{{- $placement = set $placement "imagePullSecrets" . -}}{{- end -}}
{{- with $placement }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Addresses of etcd, separated by commas. */}}
{{- define "concordat.etcdEndpoints" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- join "," .Values.etcd.external.endpoints -}}
{{- else -}}
{{- $name := printf "%s-etcd" (include "concordat.fullname" .) -}}
{{- $endpoints := list -}}
{{- range until (int .Values.etcd.replicas) -}}
{{- $endpoints = append $endpoints (printf "https://%s-%d.%s.%s.svc:2379" $name . $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $endpoints -}}
{{- end -}}
{{- end -}}

{{/* The Secret with etcd's certificate for the operator, where one is mounted: else the operator makes its own. */}}
{{- define "concordat.etcdSecret" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- .Values.etcd.external.secretName -}}
{{- else if eq .Values.pki.provider "cert-manager" -}}
{{- printf "%s-etcd-root" (include "concordat.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* What cannot go together, said before anything is made. */}}
{{- define "concordat.check" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- $secure := 0 -}}
{{- range .Values.etcd.external.endpoints -}}{{- if hasPrefix "https://" . -}}{{- $secure = add1 $secure -}}{{- end -}}{{- end -}}
{{- if not .Values.etcd.external.endpoints -}}
{{- fail "etcd.mode is external: set etcd.external.endpoints" -}}
{{- else if and (ne (int $secure) 0) (ne (int $secure) (len .Values.etcd.external.endpoints)) -}}
{{- fail "etcd.external.endpoints: either all are https:// or none is" -}}
{{- else if and (ne (int $secure) 0) (not .Values.etcd.external.secretName) -}}
{{- fail "etcd.external.endpoints are https://: set etcd.external.secretName" -}}
{{- else if and (eq (int $secure) 0) .Values.etcd.external.secretName -}}
{{- fail "etcd.external.secretName is of no use with http://: write https:// in etcd.external.endpoints" -}}
{{- end -}}
{{- else -}}
{{- $replicas := int .Values.etcd.replicas -}}
{{- if and (gt $replicas 1) (not .Values.etcd.persistence.enabled) -}}
{{- fail "etcd.replicas is more than 1: a member that comes back without what it knew is not let in again; leave etcd.persistence.enabled" -}}
{{- end -}}
{{- /* New members would be a cluster of their own beside the old one. 0 is an etcd that is stopped, to be restored. */ -}}
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-etcd" (include "concordat.fullname" .)) -}}
{{- $there := int .spec.replicas -}}
{{- if and $there (ne $there $replicas) -}}
{{- fail (printf "etcd.replicas cannot be changed from %d to %d: leave it, or install anew" $there $replicas) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
