exports.hello = () => "hello from npm workspaces";
