// Command go-xiaomi sets and gets through XiaoMi's Go client, from which Apache's was made.
// What it takes, prints and checks, and the quirks of the client: package check.
package main

import (
	"context"

	"github.com/XiaoMi/pegasus-go-client/pegalog"
	"github.com/XiaoMi/pegasus-go-client/pegasus"

	"meta-proxy.test/check"
)

func main() {
	// Else the client writes ./pegasus.log.
	pegalog.SetLogger(pegalog.StderrLogger)

	check.Main(func(metas []string) check.Open {
		client := pegasus.NewClient(pegasus.Config{MetaServers: metas})
		return func(ctx context.Context, table string) (check.Table, error) {
			return client.OpenTable(ctx, table)
		}
	})
}
