// Holds a Grafana dashboard against Grafana's schema, as the types that Grafana generates from it have it.
//
//	go-grafana FILE
//
// A key that the schema does not know, a value of another type and a broken constraint are errors, also in the options of
// panels and in the queries for Prometheus.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: go-grafana FILE")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err)
	}
	plugins.RegisterDefaultPlugins()
	var board dashboard.Dashboard
	// It returns an empty list of errors, not nil, for a good one.
	if err := board.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		fail(err)
	}
	if err := board.Validate(); err != nil {
		fail(err)
	}
	fmt.Printf("%d panels are as the schema wants them\n", len(board.Panels))
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}
