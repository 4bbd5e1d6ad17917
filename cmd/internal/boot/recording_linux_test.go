package boot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// This file turns what a terminal has shown into a picture that shows it again: an SVG that
// needs no script and no other file, so that it works as an image in a README.

// recordVariable is an environment variable. If it is set, the test of the quick start writes
// its recording to the file that it names.
const recordVariable = "PORTKNOCK_RECORD"

// recordingFile is the recording that README shows.
const recordingFile = "../../../testdata/quickstart.svg"

// These are times of the recording. The tests type faster than a user.
const (
	keyPause   = 45 * time.Millisecond   // before each character that the user types
	enterPause = 400 * time.Millisecond  // before the user presses Enter
	readPause  = 1200 * time.Millisecond // before the user types the next line
	longest    = 2 * time.Second         // a longer pause of a program is shortened to this
)

// span is a text of the picture that appears at one time.
type span struct {
	row, column int
	text        string
	class       string // c is what the user types, p a prompt, and o other output
	at          time.Duration
}

// recording is what the picture shows.
type recording struct {
	spans     []span
	rows      int
	took      time.Duration // time that the commands took, without the user's pauses
	shortened bool
}

// promptText matches the prompt of a shell.
var promptText = regexp.MustCompile(`^(\w+@\w+:~)?[$#] $`)

// newRecording lays out what a terminal has shown, up to the last prompt.
func newRecording(all []shown) *recording {
	r := &recording{}
	var at time.Duration // time in the recording
	var before time.Time // time of the event before
	row, column := 0, 0
	echo := "" // rest of the typed line that the terminal will echo
	add := func(text, class string) {
		r.spans = append(r.spans, span{row, column, text, class, at})
		column += utf8.RuneCountInString(text)
	}
	for _, s := range all {
		if s.typed {
			at += readPause
			for _, char := range s.text {
				at += keyPause
				add(string(char), "c")
			}
			at += enterPause
			before, echo = s.at, s.text
			continue
		}
		if !before.IsZero() {
			pause := s.at.Sub(before)
			r.took += pause
			if pause > longest {
				pause, r.shortened = longest, true
			}
			at += pause
		}
		before = s.at
		text := s.text
		for echo != "" && text != "" && text[0] == echo[0] {
			text, echo = text[1:], echo[1:]
		}
		for i, line := range strings.Split(text, "\n") {
			if i > 0 {
				row, column = row+1, 0
			}
			class := "o"
			if column == 0 && promptText.MatchString(line) {
				class = "p"
			}
			if line != "" {
				add(line, class)
			}
		}
	}
	r.rows = row + 1
	return r
}

// text returns the rows that the picture shows in the end.
func (r *recording) text() []string {
	rows := make([]string, r.rows)
	for _, s := range r.spans {
		rows[s.row] += s.text
	}
	return rows
}

// These are sizes of the picture, in pixels.
const (
	charWidth, lineHeight = 8.4, 19.0
	margin, barHeight     = 16.0, 34.0
)

// svg returns the picture. All its text is visible unless the reader's program plays the
// animation: a text is hidden for the time until it appears. The animation runs once, and is off
// if the reader prefers so.
func (r *recording) svg(title string) []byte {
	width, height := 2*margin+columns*charWidth, barHeight+2*margin+float64(r.rows)*lineHeight
	caption := fmt.Sprintf("%s · %.1f s without typing", title, r.took.Seconds())
	if r.shortened {
		caption += fmt.Sprintf(" (pauses over %d s are shortened)", longest/time.Second)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]g %[2]g" width="%[1]g" height="%[2]g" role="img">
<title>%[3]s</title>
<desc>%[4]s</desc>
<style>
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; white-space: pre }
.o { fill: #c9d1d9 } .c { fill: #fff; font-weight: bold } .p { fill: #7ee787 } .t { fill: #9198a1; font-size: 13px }
.o, .c, .p { animation: appear step-end }
@keyframes appear { from { visibility: hidden } }
@media (prefers-reduced-motion: reduce) { .o, .c, .p { animation: none } }
</style>
<rect x="0.5" y="0.5" width="%[5]g" height="%[6]g" rx="8" fill="#161b22" stroke="#6e7681"/>
<path d="M0.5 %[7]gH%[8]g" stroke="#6e7681"/>
`, width, height, html.EscapeString(title), html.EscapeString(strings.Join(r.text(), "\n")),
		width-1, height-1, barHeight+0.5, width-0.5)
	for i, color := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&b, `<circle cx="%g" cy="%g" r="6" fill="%s"/>`+"\n", margin+6+20*float64(i), barHeight/2, color)
	}
	fmt.Fprintf(&b, `<text class="t" x="%g" y="%g" text-anchor="middle">%s</text>`+"\n", width/2, barHeight/2+5, html.EscapeString(caption))
	for _, s := range r.spans {
		// A text has its width, because fonts differ.
		fmt.Fprintf(&b, `<text class="%s" x="%.4g" y="%.4g" textLength="%.4g" xml:space="preserve" style="animation-duration:%.2fs">%s</text>`+"\n",
			s.class, margin+charWidth*float64(s.column), barHeight+margin+lineHeight*(float64(s.row)+0.75),
			charWidth*float64(utf8.RuneCountInString(s.text)), s.at.Seconds(), html.EscapeString(s.text))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// record writes the recording of a shell if the environment wants it. Otherwise, it checks that the
// recording in testdata shows what the commands print today.
func record(t *testing.T, s *shell, title string) {
	t.Helper()
	s.mu.Lock()
	r := newRecording(s.shown)
	s.mu.Unlock()
	if file := os.Getenv(recordVariable); file != "" {
		if err := os.WriteFile(file, r.svg(title), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	shown := strings.Join(r.text(), "\n") + "\n"
	for line := range strings.Lines(recorded(t).Desc + "\n") {
		// A busy computer may print more: a line of progress.
		if !strings.Contains(shown, line) {
			t.Errorf("the recording in testdata has a line that the commands do not print; run .ci/record\n%s", line)
		}
	}
}

// picture has the parts of an SVG that tests read.
type picture struct {
	Desc string `xml:"desc"`
	Text []struct {
		Text string `xml:",chardata"`
	} `xml:"text"`
}

func recorded(t *testing.T) (p picture) {
	t.Helper()
	file, err := os.ReadFile(recordingFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(file, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRecordingStandsAlone: the recording in testdata is small, loads nothing and runs nothing,
// and its last picture shows all of the text.
func TestRecordingStandsAlone(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile(recordingFile)
	if err != nil {
		t.Fatal(err)
	}
	if len(file) > 60_000 {
		t.Errorf("the recording has %d bytes", len(file))
	}
	for _, text := range []string{"<script", "href", "url(", "@import", "<image", "foreignObject"} {
		if bytes.Contains(file, []byte(text)) {
			t.Errorf("the recording contains %s", text)
		}
	}
	p := recorded(t)
	var text strings.Builder
	for _, part := range p.Text[1:] { // the first one is the title
		text.WriteString(part.Text)
	}
	if want := strings.ReplaceAll(p.Desc, "\n", ""); text.String() != want {
		t.Errorf("the recording shows %q, want %q", text.String(), want)
	}
	for _, command := range []string{"$ portknock profile add ", "$ portknock deploy vps", "$ ssh vps", "@vps:~$ "} {
		if !strings.Contains(p.Desc, command) {
			t.Errorf("the recording does not show %q", command)
		}
	}
	for line := range strings.Lines(p.Desc) {
		if strings.HasPrefix(line, "portknock: ") || utf8.RuneCountInString(line) > columns+1 {
			t.Errorf("the recording shows an error or a line that is too long: %s", line)
		}
	}
}

// TestRecordingKeepsTimes: each text appears when the terminal has shown it, and only pauses of
// programs that are too long are shortened.
func TestRecordingKeepsTimes(t *testing.T) {
	t.Parallel()
	start := time.Now()
	after := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	r := newRecording([]shown{
		{at: after(0), text: "$ "},
		{at: after(1), text: "ab", typed: true},
		{at: after(1), text: "a"}, {at: after(1), text: "b\none\n"},
		{at: after(2.5), text: "tw"}, {at: after(2.5), text: "o\n"},
		{at: after(12.5), text: "$ "},
	})
	typing := readPause + 2*keyPause + enterPause
	want := []span{
		{0, 0, "$ ", "p", 0},
		{0, 2, "a", "c", readPause + keyPause}, {0, 3, "b", "c", readPause + 2*keyPause},
		{1, 0, "one", "o", typing},
		{2, 0, "tw", "o", typing + 1500*time.Millisecond}, {2, 2, "o", "o", typing + 1500*time.Millisecond},
		{3, 0, "$ ", "p", typing + 3500*time.Millisecond},
	}
	if fmt.Sprint(r.spans) != fmt.Sprint(want) {
		t.Errorf("the spans are\n%v, want\n%v", r.spans, want)
	}
	if got := strings.Join(r.text(), "|"); got != "$ ab|one|two|$ " || r.took != 11500*time.Millisecond || !r.shortened {
		t.Errorf("the recording has the text %q, took %v, shortened: %v", got, r.took, r.shortened)
	}
	if err := xml.NewDecoder(bytes.NewReader(r.svg("a < b"))).Decode(new(picture)); err != nil && err != io.EOF {
		t.Error(err)
	}
}
