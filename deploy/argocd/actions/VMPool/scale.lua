local wanted = actionParams ~= nil and tonumber(actionParams["replicas"]) or nil
if wanted == nil or wanted < 0 or wanted % 1 ~= 0 then
  error("replicas must be a whole number, 0 or more", 0)
end
obj.spec.replicas = wanted
return obj
