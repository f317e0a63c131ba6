{{/*
What the operator may do in a namespace it watches. Written out verb by verb: no wildcard, no
access to Secrets, no exec, and pods can be listed but not written. weir_operator.cluster says what
each is for; a test holds the two equal.
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
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
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
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
