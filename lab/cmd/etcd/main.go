// Command etcd is the etcd server, built here from its module because etcd's
// own go.mod contains replacements that `go install` refuses.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
