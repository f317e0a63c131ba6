{{/*
Written by `make generate` from operator/weir_operator/rights.py and the parts. Edit those.
*/}}
{{- define "weir.namespaceRules" -}}
# What users ask for.
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices]
  verbs: [get, list, watch]
# What became of it.
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices/status]
  verbs: [patch]
# To own objects where the OwnerReferencesPermissionEnforcement plugin is on.
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices/finalizers]
  verbs: [update]
# Whose keys and limits sidecars are told of.
- apiGroups: [serving.weir.dev]
  resources: [inferencetenants]
  verbs: [list, watch]
# What became of them.
- apiGroups: [serving.weir.dev]
  resources: [inferencetenants/status]
  verbs: [patch]
# Why a replica is not ready is in its pods' state; annotations bring a new Secret soon, and say
# which goes first.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
# The story that `kubectl describe` tells.
- apiGroups: [""]
  resources: [events]
  verbs: [create]
# Sidecars are told of classes, tenants and peers; hashes of tenants' keys are read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
# The pods' identity, without rights.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# Only the sidecar's ports are open.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# The address of clients, and the list of replicas.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
# Node drains take one replica, and one gateway, at a time.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# The pods of a pool, and gateways where there may be no replica.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# The pods of a pool whose replicas spread over nodes.
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [get, list, watch, create, patch, delete]
# Pod templates that are kept over upgrades of the operator.
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, create, patch, delete]
# Models come to a claim ahead of replicas.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
{{- end -}}

{{- define "weir.secretWatchRules" -}}
# An edited Secret counts within seconds. The operator asks for metadata alone, which RBAC cannot
# demand: a watch of whole objects begins with every Secret there is, so with this right whoever has
# the operator's token can read all Secrets of these namespaces without knowing their names.
- apiGroups: [""]
  resources: [secrets]
  verbs: [watch]
{{- end -}}

{{- define "weir.classRules" -}}
# The one thing it reads that is in no namespace.
- apiGroups: [serving.weir.dev]
  resources: [inferencepriorityclasses]
  verbs: [list, watch]
{{- end -}}
