// Package check is what the programs for the different versions of the Go client have in common: arguments to exit code.
//
//	[-expect-error TABLE | -load DURATION | -write] META_HOST:PORT[,META_HOST:PORT...] TABLE...
//
// Each table is opened through one client, a key is set and read back, and "ok TABLE" is printed. Then the table of
// -expect-error is opened too, which has to fail soon and with an error that has a name; "error TABLE: what" is printed.
//
// With -load the tables are opened one after the other, so that the last is opened when the time is over, and meanwhile
// keys are set and read back all the time. Each failure is printed, and in the end "load ok=N failed=N".
//
// With -write keys are written to the first table until the input ends: see write.go.
//
// Quirks of the client that matter here:
//   - of several MetaServers it asks the one that answered last; after a second without an answer it asks all others;
//   - one client asks for all its tables over one connection, which it never closes: several tables in one run are
//     what makes a proxy route each query rather than each connection;
//   - it asks again only a minute after its connection was closed, so that a closed connection shows as a timeout;
//   - a frame error, or an answer that it cannot parse, shows as a timeout too: hence "an error that has a name".
package check

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

const (
	// For opening a table, for setting a key and for getting it, each.
	patience = 5 * time.Second
	// A MetaServer answers in milliseconds, and the proxy owes an answer within 1.5 s.
	errorDue = 2 * time.Second
)

// Table is as much of an open table as is used here; both clients have it.
type Table interface {
	Set(ctx context.Context, hashKey []byte, sortKey []byte, value []byte) error
	Get(ctx context.Context, hashKey []byte, sortKey []byte) ([]byte, error)
}

// Open opens a table through a client that exists already.
type Open func(ctx context.Context, table string) (Table, error)

// Main is the whole program, given how to make a client of these MetaServers.
func Main(newClient func(metas []string) Open) {
	expectError := flag.String("expect-error", "", "a table which must fail to open, soon and with a named error")
	load := flag.Duration("load", 0, "open the tables during so long, and set and get all the time")
	write := flag.Bool("write", false, "write numbered keys until the input ends, and tell of each that is acknowledged")
	flag.Parse()
	if flag.NArg() < 1 || (flag.NArg() == 1 && *expectError == "") {
		fmt.Fprintln(os.Stderr, "usage: [-expect-error TABLE | -load DURATION | -write] META_HOST:PORT[,...] TABLE...")
		os.Exit(2)
	}
	open := newClient(strings.Split(flag.Arg(0), ","))
	if *write {
		os.Exit(runWrite(open, flag.Arg(1)))
	}
	if *load > 0 {
		os.Exit(runLoad(open, flag.Args()[1:], *load))
	}
	if err := run(open, flag.Args()[1:], *expectError); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func run(open Open, tables []string, expectError string) error {
	for _, name := range tables {
		if err := setAndGet(open, name); err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
		fmt.Println("ok", name)
	}
	if expectError == "" {
		return nil
	}
	named, err := failToOpen(open, expectError)
	if err != nil {
		return fmt.Errorf("table %s: %w", expectError, err)
	}
	fmt.Printf("error %s: %s\n", expectError, named)
	return nil
}

// runLoad returns the exit code.
func runLoad(open Open, names []string, load time.Duration) int {
	type opened struct {
		Table
		name string
	}
	var tables []opened
	ok, failed := 0, 0
	count := func(what string, err error) {
		if err == nil {
			ok++
			return
		}
		failed++
		fmt.Println("failed:", what, err)
	}
	start := time.Now()
	for asked := 0; asked < len(names) || time.Since(start) < load; {
		if asked < len(names) && time.Since(start) >= load*time.Duration(asked)/time.Duration(len(names)) {
			table, err := openTable(open, names[asked])
			count("open "+names[asked], err)
			if err == nil {
				tables = append(tables, opened{table, names[asked]})
			}
			asked++
		}
		if len(tables) > 0 {
			table := tables[ok%len(tables)]
			count("set and get in "+table.name, setAndGetIn(table, table.name))
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Printf("load ok=%d failed=%d\n", ok, failed)
	if failed > 0 {
		return 1
	}
	return 0
}

func setAndGet(open Open, name string) error {
	table, err := openTable(open, name)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return setAndGetIn(table, name)
}

func openTable(open Open, name string) (table Table, err error) {
	err = patiently(func(ctx context.Context) (err error) {
		table, err = open(ctx, name)
		return err
	})
	return table, err
}

func setAndGetIn(table Table, name string) error {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	suffix := hex.EncodeToString(random)
	hashKey, sortKey := []byte("key-"+suffix), []byte("sort")
	value := []byte("value of " + name + " " + suffix)

	err := patiently(func(ctx context.Context) error { return table.Set(ctx, hashKey, sortKey, value) })
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	var got []byte
	err = patiently(func(ctx context.Context) (err error) {
		got, err = table.Get(ctx, hashKey, sortKey)
		return err
	})
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if !bytes.Equal(got, value) {
		return fmt.Errorf("get: want %q, got %q", value, got)
	}
	return nil
}

var hasName = regexp.MustCompile(`ERR_[A-Z_]+`)

// failToOpen gives the error that was expected, or why it is not what was expected.
func failToOpen(open Open, name string) (named error, err error) {
	start := time.Now()
	named = patiently(func(ctx context.Context) error {
		_, err := open(ctx, name)
		return err
	})
	took := time.Since(start)
	switch {
	case named == nil:
		return nil, fmt.Errorf("open: want an error, got none")
	case !hasName.MatchString(named.Error()):
		return nil, fmt.Errorf("open: want a named error, got after %v: %w", took, named)
	case took > errorDue:
		return nil, fmt.Errorf("open: want an error within %v, got after %v: %w", errorDue, took, named)
	}
	return named, nil
}

func patiently(do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return do(ctx)
}
