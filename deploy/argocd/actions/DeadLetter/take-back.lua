obj.spec.action = nil
return obj
