{{/*
What the operator may do in a namespace it watches. Written out verb by verb: no wildcard, no exec,
and of pods only metadata is patched. weir_operator.cluster says what each is for; a test holds the
two equal.
*/}}
{{- define "weir.namespaceRules" -}}
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices]
  verbs: [get, list, watch]
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices/status]
  verbs: [patch]
# Needed to own objects where the OwnerReferencesPermissionEnforcement plugin is on.
- apiGroups: [serving.weir.dev]
  resources: [inferenceservices/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Why a replica is not ready is in its pods' state.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, patch]
# One Secret a service tells its sidecars of classes and tenants; those with the hashes of tenants'
# API keys are read by name. RBAC cannot say "only these".
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [serving.weir.dev]
  resources: [inferencetenants]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/*
So that an edited Secret counts within seconds. The operator asks for metadata alone, which RBAC
cannot demand: a watch of whole objects begins with every Secret there is, so with this right whoever
has the operator's token can read all Secrets of these namespaces without knowing their names.
*/}}
{{- define "weir.secretWatchRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [watch]
{{- end -}}

{{/*
The one thing it reads that is in no namespace.
*/}}
{{- define "weir.classRules" -}}
- apiGroups: [serving.weir.dev]
  resources: [inferencepriorityclasses]
  verbs: [list, watch]
{{- end -}}
