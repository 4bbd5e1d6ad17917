package proxy

import (
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// queue limits the data of an upload that waits on this machine: in the input pipe, and
// unsent in the socket. ssh fills both, and a key that is pressed during the upload waits
// behind that data. Both limits follow the measured rate of the upload, so that the data
// leaves within a few milliseconds.
//
// The limits are low from the start, because a pipe cannot become smaller than the data in
// it. They grow for a fast upload, which would otherwise need many system calls.
type queue struct {
	in, conn any
	pipe     int // number of bytes that the input pipe can hold now
	largest  int // value of pipe before Splice; 0 if the input is not a pipe
	unsent   int // TCP_NOTSENT_LOWAT of the socket now

	// The rate is measured from since on. bytes have been moved since then.
	since time.Time
	bytes int64
}

const (
	smallPipe   = bulkSize
	largeUnsent = 1 << 20

	// The pipe holds what leaves within pipeTime, and the socket what leaves within
	// unsentTime.
	pipeTime   = 2 * time.Millisecond
	unsentTime = 5 * time.Millisecond

	// A rate is measured for at least rateTime and over at least ratePipes full pipes.
	rateTime  = 5 * time.Millisecond
	ratePipes = 4
)

// limitQueue limits the data of an upload from in to conn that waits on this machine. The
// upload must call moved with the number of bytes each time that it has taken data from in.
//
// No pipe becomes larger than it was, because all pipes of a user share one limit
// (pipe-user-pages-soft in pipe(7)).
func limitQueue(conn net.Conn, in io.Reader) (moved func(n int64)) {
	q := &queue{in: in, conn: conn, since: time.Now()}
	withFD(in, func(fd int) {
		q.largest, _ = unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0) // fails if in is not a pipe
	})
	q.largest = max(q.largest, 0)
	q.pipe = q.largest
	q.resize(0)
	return q.moved
}

// moved counts n bytes that the upload has taken from the input. At most once in rateTime,
// it adapts the queue to the rate.
func (q *queue) moved(n int64) {
	q.bytes += n
	if q.bytes < ratePipes*int64(max(q.pipe, smallPipe)) {
		return
	}
	now := time.Now()
	elapsed := now.Sub(q.since)
	if elapsed < rateTime {
		return
	}
	q.resize(float64(q.bytes) / float64(elapsed))
	q.since, q.bytes = now, 0
}

// resize adapts the queue to a rate in bytes per nanosecond. A pipe that holds more than
// its new size keeps the old one until the next call.
func (q *queue) resize(rate float64) {
	pipe := min(smallPipe, q.largest)
	for pipe < q.largest && float64(pipe) < rate*float64(pipeTime) {
		pipe *= 2
	}
	if pipe != q.pipe {
		withFD(q.in, func(fd int) {
			if n, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipe); err == nil {
				q.pipe = n
			}
		})
	}
	if unsent := min(max(int(rate*float64(unsentTime)), smallUnsent), largeUnsent); unsent != q.unsent {
		q.unsent = unsent
		withFD(q.conn, func(fd int) { limitUnsent(fd, unsent) })
	}
}

// limitUnsent limits the data that a TCP socket accepts before it can be sent. Data that
// is sent and not yet acknowledged does not count.
func limitUnsent(fd, bytes int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
}
