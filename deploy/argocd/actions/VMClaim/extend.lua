-- Counted from when the VMs were handed out; the pool's claims.maxLifetime is the most.
local wanted = actionParams ~= nil and actionParams["lifetime"] or nil
if wanted == nil or wanted == "" then
  error("lifetime must be a duration such as 2h", 0)
end
obj.spec.lifetime = wanted
return obj
