"""A real Kubernetes cluster on this machine, for the scenarios beside it and for people.

Control plane, etcd and Helm are built once from their Go modules (`build`), two images are written
by hand because there is no registry (`images`), and everything runs inside namespaces of its own
(`node`), so that ending one process ends the cluster and leaves nothing behind.
"""
