obj.spec.pauses = obj.spec.pauses or {}
table.insert(obj.spec.pauses, {name = "argo-cd", reason = "paused in Argo CD"})
return obj
