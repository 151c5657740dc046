local status = obj.status or {}
local open = status.phase == nil or status.phase == "Pending" or status.phase == "Bound"
return {
  extend = {
    disabled = not open,
    displayName = "Extend: another lifetime",
    iconClass = "fa fa-fw fa-clock",
    params = {{name = "lifetime", default = obj.spec.lifetime or "2h"}},
  },
}
