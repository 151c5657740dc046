-- Claimed VMs stay until their claims end.
obj.spec.replicas = 0
return obj
