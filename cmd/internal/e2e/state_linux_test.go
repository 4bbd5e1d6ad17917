package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestFailureHiddenByControlPersistIsRemembered: with ControlPersist, ssh does not show
// portknock's stderr. The state folder still has the reason. The next login ends the failure,
// also if ssh uses portknock's socket.
func TestFailureHiddenByControlPersistIsRemembered(t *testing.T) {
	withAndWithoutFDPass(t, func(t *testing.T, r *rig) {
		state := t.TempDir()
		right := r.profile
		ssh := func(profile string) (string, error) {
			r.profile = profile
			r.setFDPass(t, r.fdpass)
			return r.client.Try("env", "XDG_STATE_HOME="+state, "ssh", "-F", r.config, "-o", "ControlMaster=auto",
				"-o", "ControlPath="+filepath.Join(t.TempDir(), "master"), "-o", "ControlPersist=1", "vps", "true")
		}
		out, err := ssh(r.vpsProfile(t, "Sequence 1111/udp 2222/udp", "ConnectTimeout 1"))
		if err == nil || strings.Contains(out, "did not open") {
			t.Fatalf("ssh prints %q, %v; want an error without portknock's reason", out, err)
		}
		var failure struct {
			Time time.Time
			Code int    `json:"code"`
			Text string `json:"error"`
			Hint string
		}
		text := lab.ReadFile(t, filepath.Join(state, "portknock/vps.failure"))
		if err := json.Unmarshal([]byte(text), &failure); err != nil || failure.Code != exitClosed ||
			!strings.HasPrefix(failure.Text, "vps: port 22 did not open within 1s: ") || failure.Hint == "" || hasNumber(text, "1111", "2222") {
			t.Errorf("the state folder has %s, error %v", text, err)
		}

		var success struct {
			Time time.Time `json:"last_success"`
		}
		if out, err := ssh(right); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lab.Await(t, 10*time.Second, func() string { // portknock writes it behind the login
			text, _ := os.ReadFile(filepath.Join(state, "portknock/vps.json"))
			if err := json.Unmarshal(text, &success); err != nil || !success.Time.After(failure.Time) {
				return "the state folder does not have the login: " + string(text)
			}
			return ""
		})
	})
}
