package knock

import (
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// socket is the type that package syscall uses for a socket.
type socket = syscall.Handle

// errnosSent lists the errors of connect that mean that the SYN has been sent.
var errnosSent = []error{windows.WSAEWOULDBLOCK, windows.WSAECONNREFUSED}

// prepare makes a socket non-blocking, because on Windows the sockets of the net package
// block; the package uses overlapped calls. prepare also keeps the system from repeating
// the SYN, even if a driver delays the close of the socket. Before Windows 10 version 1709
// the system may ignore that.
func prepare(s socket) error {
	const fionbio = 0x8004667e // the control code FIONBIO
	on := uint32(1)
	if err := ioctl(s, fionbio, unsafe.Pointer(&on), unsafe.Sizeof(on)); err != nil {
		return err
	}
	// SIO_TCP_INITIAL_RTO and TCP_INITIAL_RTO_PARAMETERS of mstcpip.h. The values mean
	// TCP_INITIAL_RTO_UNSPECIFIED_RTT and TCP_INITIAL_RTO_NO_SYN_RETRANSMISSIONS.
	const sioTCPInitialRTO = windows.IOC_IN | windows.IOC_VENDOR | 17
	rto := struct {
		rtt     uint16
		repeats uint8
	}{math.MaxUint16, math.MaxUint8 - 1}
	_ = ioctl(s, sioTCPInitialRTO, unsafe.Pointer(&rto), unsafe.Sizeof(rto))
	return nil
}

func ioctl(s socket, code uint32, in unsafe.Pointer, size uintptr) error {
	var returned uint32
	return syscall.WSAIoctl(s, code, (*byte)(in), uint32(size), nil, 0, &returned, nil, 0)
}
