local paused = obj.spec.paused == true
return {
  pause = {disabled = paused, iconClass = "fa fa-fw fa-pause"},
  resume = {disabled = not paused, iconClass = "fa fa-fw fa-play"},
}
