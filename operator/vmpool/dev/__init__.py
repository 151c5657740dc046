"""A real Kubernetes control plane on this machine: built once, started in seconds, gone without a trace.

Belongs here: building etcd, kube-apiserver, kube-controller-manager and kubectl from Go modules, and Helm and
kubeconform for the chart; starting and stopping the plane, the state folder of ``vmpool dev``. Imports nothing of
vmpool: it knows no pools. Used by the CLI, the demo and the tests alike.
"""
