local os = require("os")
obj.spec.resetBefore = os.date("!%Y-%m-%dT%H:%M:%SZ")
return obj
