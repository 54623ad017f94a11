require("is-odd");
require("fs").writeFileSync("generated.txt", "generated\n");
