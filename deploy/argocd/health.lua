-- Health of every kind of vmpool.dev. The first rule that fits decides.

local KINDS_WITH_PHASES = {
  PooledVM = {
    Pending = {"Progressing", "on its way"},
    Ready = {"Healthy", "ready"},
    Claimed = {"Healthy", "somebody has it"},
    Quarantined = {"Degraded", "failed; its machine is kept for a human"},
    Completed = {"Progressing", "its machine is being destroyed"},
  },
  DeadLetter = {
    Kept = {"Suspended", "waits for somebody to redrive or discard it"},
    Redriven = {"Healthy", "was tried again"},
    NotNeeded = {"Healthy", "the pool did not lack it any more"},
    Refused = {"Degraded", "could not be tried again"},
  },
}

local ENDED = {Released = true, Expired = true}

-- Conditions whose presence is bad news, or, for Archiving, whose absence is.
local TROUBLES = {
  {"Stalled", "True"},
  {"Poisoned", "True"},
  {"PolicyMissing", "True"},
  {"Unhealthy", "True"},
  {"Archiving", "False"},
  {"MachineGone", "True"},
  {"ClaimMissing", "True"},
}

local status = obj.status or {}
local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function answer(health, message)
  return {status = health, message = message or ""}
end

-- The reason, and the sentence behind it.
local function told(condition)
  if condition.message == nil or condition.message == "" then
    return condition.reason
  end
  return condition.reason .. ": " .. condition.message
end

local function holds(kind, value)
  return conditions[kind] ~= nil and conditions[kind].status == value
end

local ready = conditions["Ready"]

if obj.metadata.deletionTimestamp ~= nil then
  return answer("Progressing", ready and told(ready) or status.message or "being deleted")
end

local phases = KINDS_WITH_PHASES[obj.kind]
if phases ~= nil then
  for _, trouble in ipairs(TROUBLES) do
    if holds(trouble[1], trouble[2]) then
      return answer("Degraded", told(conditions[trouble[1]]))
    end
  end
  local known = phases[status.phase or ""]
  if known == nil then
    return answer("Progressing", "not looked at yet")
  end
  return answer(known[1], status.message or known[2])
end

-- What was said of an older spec says nothing of this one.
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return answer("Progressing", "the operator has not looked at this version yet")
end

if obj.spec.paused then
  return answer("Suspended", ready and told(ready) or "paused")
end

for _, trouble in ipairs(TROUBLES) do
  if holds(trouble[1], trouble[2]) then
    return answer("Degraded", told(conditions[trouble[1]]))
  end
end

if obj.kind == "VMClaim" and ENDED[status.phase or ""] then
  return answer("Suspended", status.message or "it has ended")
end

-- A policy that rests wholly; PoolsPaused speaks of some of its pools.
if holds("Paused", "True") and conditions["Paused"].reason == "Paused" then
  return answer("Suspended", told(conditions["Paused"]))
end

-- A HealthPolicy has its verdict in the place of Ready; degraded is a warning.
if obj.kind == "HealthPolicy" then
  local verdict = conditions["Degraded"] or conditions["Healthy"]
  if verdict == nil then
    return answer("Progressing", "the operator has not judged yet")
  end
  return answer("Healthy", status.message or told(verdict))
end

if ready == nil or ready.status ~= "True" or ready.observedGeneration ~= obj.metadata.generation then
  return answer("Progressing", ready and told(ready) or "the operator has not looked at it yet")
end

if holds("Degraded", "True") then
  return answer("Healthy", told(conditions["Degraded"]))
end
if holds("Reconciling", "True") then
  return answer("Progressing", told(conditions["Reconciling"]))
end
return answer("Healthy", told(ready))
