exports.hello = () => "hello from a workspace, ms " + require("ms/package.json").version;
