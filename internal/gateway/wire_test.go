package gateway

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func message(kind byte, body string) []byte {
	return append(append([]byte{kind}, binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))...), body...)
}

func startupPacket(code uint32, body string) []byte {
	return append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(len(body)+8)), code), body...)
}

type script struct {
	io.Reader
	bytes.Buffer // what was written
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestReadStartup(t *testing.T) {
	plain := startupPacket(3<<16, "user\x00app\x00\x00")
	ssl, gss := startupPacket(requestSSL, ""), startupPacket(requestGSS, "")
	cancel := startupPacket(requestCancel, "12345678")
	for _, tc := range []struct {
		name    string
		in      []byte
		packet  []byte
		cancel  bool
		refused string
		fails   bool
	}{
		{"plain", plain, plain, false, "", false},
		{"after SSL", append(bytes.Clone(ssl), plain...), plain, false, "N", false},
		{"after GSS and SSL", append(append(bytes.Clone(gss), ssl...), plain...), plain, false, "NN", false},
		{"cancel", cancel, cancel, true, "", false},
		{"asks for ever", bytes.Repeat(ssl, 5), nil, false, "NNN", true},
		{"too long", binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, maxStartup+1), 3<<16), nil, false, "", true},
		{"too short", []byte{0, 0, 0, 7, 0, 3, 0, 0}, nil, false, "", true},
		{"cut off", plain[:10], nil, false, "", true},
		{"nothing", nil, nil, false, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{Reader: bytes.NewReader(tc.in)}
			packet, isCancel, err := readStartup(s)
			require.Equal(t, tc.fails, err != nil, "%v", err)
			require.Equal(t, tc.refused, s.String())
			if !tc.fails {
				require.Equal(t, tc.packet, packet)
				require.Equal(t, tc.cancel, isCancel)
			}
		})
	}
}

func TestErrorMessage(t *testing.T) {
	msg := errorMessage("57P01", "gone", "why")
	require.Equal(t, byte('E'), msg[0])
	require.Equal(t, len(msg)-1, int(binary.BigEndian.Uint32(msg[1:])))
	body := msg[5:]
	for field, want := range map[byte]string{'S': "FATAL", 'V': "FATAL", 'C': "57P01", 'M': "gone", 'D': "why", 'H': ""} {
		require.Equal(t, want, errorField(body, field))
	}
	require.Empty(t, errorField([]byte("Cno end"), 'C'))
	require.Empty(t, errorField(nil, 'C'))
}

// However a stream is cut into pieces, the framer says the same, and knows a boundary when it sees one.
func TestFramer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		boundaries := map[int]bool{0: true}
		loggedIn, transaction, sqlstate, standby := false, byte(0), "", false
		for range rapid.IntRange(0, 30).Draw(t, "messages") {
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0:
				transaction = rapid.SampledFrom([]byte("ITE")).Draw(t, "transaction")
				loggedIn = true
				stream = append(stream, message('Z', string(transaction))...)
			case 1:
				code := rapid.StringMatching("[0-9A-Z]{5}").Draw(t, "code")
				stream = append(stream, errorMessage(code, "text", "")...)
				transaction = 0
				if !loggedIn {
					sqlstate = code
				}
			case 2:
				stream = append(stream, message('S', "in_hot_standby\x00on\x00")...)
				standby = standby || !loggedIn
			case 3:
				transaction = 0
				stream = append(stream, message('D', string(make([]byte, rapid.IntRange(0, 9000).Draw(t, "row"))))...)
			case 4:
				transaction = 0
				stream = append(stream, message('1', "")...)
			case 5: // looks like something else inside
				transaction = 0
				stream = append(stream, message('d', string(message('Z', "T")))...)
			}
			boundaries[len(stream)] = true
		}
		var f framer
		for at := 0; at < len(stream); {
			n := rapid.IntRange(1, min(4000, len(stream)-at)).Draw(t, "piece")
			f.feed(stream[at : at+n])
			at += n
			if f.boundary() != boundaries[at] {
				t.Fatalf("after %d bytes boundary is %v", at, f.boundary())
			}
		}
		if f.fatal != nil || f.loggedIn != loggedIn || f.transaction != transaction || f.sqlstate != sqlstate || f.standby != standby {
			t.Fatalf("%+v; want %v %q %q %v", f, loggedIn, transaction, sqlstate, standby)
		}
	})
}

func TestFramerRefusesNonsense(t *testing.T) {
	for _, size := range []uint32{0, 3, 1<<30 + 1} {
		var f framer
		f.feed(append([]byte{'D'}, binary.BigEndian.AppendUint32(nil, size)...))
		require.Error(t, f.fatal)
		require.False(t, f.boundary())
		f.feed(message('Z', "I"))
		require.False(t, f.loggedIn)
	}
}

func TestFramerDoesNotKeepMuch(t *testing.T) {
	var f framer
	f.feed(message('E', "C57P01\x00M"+string(bytes.Repeat([]byte{'x'}, 10*maxInspect))+"\x00\x00"))
	require.True(t, f.boundary())
	require.LessOrEqual(t, cap(f.keep), 2*maxInspect)
}
