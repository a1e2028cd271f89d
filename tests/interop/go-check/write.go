package check

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"
)

const (
	writers = 4
	// Each writer overwrites its own keys again and again, so that a late mutation shows as an old value.
	keysPerWriter = 500
	writeWithin   = time.Second
	betweenWrites = 2 * time.Millisecond
)

var errorKind = regexp.MustCompile(`ERR_[A-Z_]+|deadline exceeded`)

// runWrite writes until the input ends, and returns the exit code. It prints
//
//	ack KEY NUMBER     a write is acknowledged: the hash key, and the value that it has now; its sort key is "s"
//	error KIND COUNT   in the end, for each kind of error
//	gap_ms N           in the end: the longest time without an acknowledged write
//
// A write that failed may have been done all the same: of a key, the value in the end is the last acknowledged one or
// a later one.
func runWrite(open Open, name string) int {
	table, err := openTable(open, name)
	if err != nil {
		fmt.Println("failed: open:", err)
		return 1
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	var (
		lock     sync.Mutex
		errors   = map[string]int{}
		last     = time.Now()
		gap      time.Duration
		finished sync.WaitGroup
	)
	told := func(key string, number int, err error) {
		lock.Lock()
		defer lock.Unlock()
		if err != nil {
			kind := errorKind.FindString(err.Error())
			if kind == "" {
				kind = "other"
			}
			errors[kind]++
			return
		}
		fmt.Println("ack", key, number)
		gap = max(gap, time.Since(last))
		last = time.Now()
	}
	for writer := 0; writer < writers; writer++ {
		finished.Add(1)
		go func(writer int) {
			defer finished.Done()
			for number := 0; ; number++ {
				select {
				case <-stop:
					return
				case <-time.After(betweenWrites):
				}
				key := fmt.Sprintf("%d-%d", writer, number%keysPerWriter)
				ctx, cancel := context.WithTimeout(context.Background(), writeWithin)
				err := table.Set(ctx, []byte(key), []byte("s"), []byte(strconv.Itoa(number)))
				cancel()
				told(key, number, err)
			}
		}(writer)
	}
	finished.Wait()
	gap = max(gap, time.Since(last))
	for kind, count := range errors {
		fmt.Printf("error %q %d\n", kind, count)
	}
	fmt.Println("gap_ms", gap.Milliseconds())
	return 0
}

func max(one, other time.Duration) time.Duration {
	if one > other {
		return one
	}
	return other
}
