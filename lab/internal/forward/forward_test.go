package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestBytesPassBothWaysAndHalfCloseIsKept(t *testing.T) {
	server := listen(t)
	go func() {
		c, err := server.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c) // ends only when the half-close arrives
		_, _ = c.Write(append([]byte("got "), all...))
	}()
	ctx, cancel := context.WithCancel(t.Context())
	front := listen(t)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, front, func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server.Addr().String())
		}, slog.New(slog.DiscardHandler))
	}()
	c, err := net.Dial("tcp", front.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "got hello", string(answer))
	cancel()
	require.NoError(t, <-done)
}

func TestUnreachableInsideClosesTheConnection(t *testing.T) {
	front := listen(t)
	go func() {
		_ = Serve(t.Context(), front, func(context.Context) (net.Conn, error) {
			return nil, errors.New("stopped")
		}, slog.New(slog.DiscardHandler))
	}()
	c, err := net.Dial("tcp", front.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}
