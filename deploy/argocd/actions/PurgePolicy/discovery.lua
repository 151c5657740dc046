local paused = false
for _, pause in ipairs(obj.spec.pauses or {}) do
  paused = paused or pause.name == "argo-cd"
end
return {
  pause = {disabled = paused, iconClass = "fa fa-fw fa-pause"},
  resume = {disabled = not paused, iconClass = "fa fa-fw fa-play"},
  ["purge-now"] = {displayName = "Begin a cycle now", iconClass = "fa fa-fw fa-broom"},
  ["dry-run"] = {disabled = obj.spec.dryRun == true, displayName = "Only list", iconClass = "fa fa-fw fa-list"},
  live = {disabled = obj.spec.dryRun ~= true, displayName = "Remove what is listed", iconClass = "fa fa-fw fa-trash"},
}
