-- A changed spec begins a cycle. This change, a pause that is over, leaves everything else as it was and says when.
local os = require("os")
local kept = {}
for _, pause in ipairs(obj.spec.pauses or {}) do
  if pause.name ~= "purge-now" then
    table.insert(kept, pause)
  end
end
table.insert(kept, {
  name = "purge-now",
  reason = "a cycle was asked for in Argo CD; this pauses nothing",
  ["until"] = os.date("!%Y-%m-%dT%H:%M:%SZ"),
})
obj.spec.pauses = kept
return obj
