-- Health of an Application that another one brings: sync waves wait for it. Argo CD itself says nothing of this kind.

local status = obj.status or {}
local health = status.health or {}
local state = status.operationState or {}

local function answer(health, message)
  return {status = health, message = message}
end

if health.status == nil then
  return answer("Progressing", "Argo CD has not looked at it yet")
end

if health.status ~= "Healthy" then
  return answer(health.status, health.message or "the worst of what is in it")
end

if obj.operation ~= nil or state.phase == "Running" or state.phase == "Terminating" then
  return answer("Progressing", state.message or "is being synced")
end

-- From 3.4 on an Application is called healthy while some of its objects are missing. Drift alone holds nobody up.
if (status.sync or {}).status ~= "Synced" then
  if state.phase == nil then
    return answer("Progressing", "was never synced")
  end
  if state.phase ~= "Succeeded" then
    return answer("Progressing", "could not be synced: " .. (state.message or state.phase))
  end
end

return answer("Healthy", health.message or "everything in it is well")
