obj.spec.dryRun = true
return obj
