package secret

import (
	"cmp"
	"errors"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/windows"
)

// killable makes a command killable, together with all processes that it has started. It
// returns the function that runs the command. The command ends when this process ends.
//
// All these processes are in a job object. Like a process group on Unix, a process may leave
// it. The processes of a command that has ended by itself go on, such as an agent.
func killable(c *exec.Cmd) (run func() error) {
	return func() error {
		job, err := windows.CreateJobObject(nil, nil)
		if err != nil {
			return err
		}
		defer windows.CloseHandle(job)
		if err := limit(job, windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE|windows.JOB_OBJECT_LIMIT_BREAKAWAY_OK); err != nil {
			return err
		}
		c.Cancel = func() error { return errors.Join(windows.TerminateJobObject(job, 1), c.Process.Kill()) }
		if err := c.Start(); err != nil {
			return err
		}
		// Only a command that has ended already cannot get into the job.
		_ = c.Process.WithHandle(func(h uintptr) { _ = windows.AssignProcessToJobObject(job, windows.Handle(h)) })
		err = c.Wait()
		return cmp.Or(err, limit(job, 0))
	}
}

// limit sets the limits of a job object.
func limit(job windows.Handle, flags uint32) error {
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	info.BasicLimitInformation.LimitFlags = flags
	_, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	return err
}
