local paused = obj.spec.paused == true
local wanted = obj.spec.replicas
if wanted == nil then
  wanted = obj.status ~= nil and obj.status.desiredReplicas or 0
end
return {
  pause = {disabled = paused, iconClass = "fa fa-fw fa-pause"},
  resume = {disabled = not paused, iconClass = "fa fa-fw fa-play"},
  drain = {
    disabled = wanted == 0,
    displayName = "Drain: no ready VMs",
    iconClass = "fa fa-fw fa-battery-empty",
  },
  reset = {displayName = "Reset: replace every unclaimed VM", iconClass = "fa fa-fw fa-sync"},
  scale = {
    iconClass = "fa fa-fw fa-arrows-alt-v",
    params = {{name = "replicas", default = tostring(wanted)}},
  },
}
