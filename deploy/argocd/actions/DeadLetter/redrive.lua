obj.spec.action = "redrive"
return obj
