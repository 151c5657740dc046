local asked = obj.spec.action
local status = obj.status or {}
local answered = status.observedGeneration ~= nil and status.observedGeneration == obj.metadata.generation
return {
  -- The same wish again would change nothing on the server: it has to be taken back first.
  redrive = {disabled = asked == "redrive", iconClass = "fa fa-fw fa-redo"},
  ["take-back"] = {
    disabled = asked == nil or not answered,
    displayName = "Take the wish back, to ask anew",
    iconClass = "fa fa-fw fa-undo",
  },
  discard = {disabled = asked == "discard", iconClass = "fa fa-fw fa-trash"},
}
