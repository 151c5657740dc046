obj.spec.action = "discard"
return obj
