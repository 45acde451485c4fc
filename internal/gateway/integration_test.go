//go:build integration

package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

func TestServes(t *testing.T) {
	l := newLab(t, nil)
	l.a.establish(1)
	conn := l.connect()
	var name string
	require.NoError(t, conn.QueryRow(context.Background(), "SHOW cluster_name").Scan(&name))
	require.Equal(t, l.a.name, name)
	_, err := conn.Exec(context.Background(), "INSERT INTO writes VALUES ($1, $2)", 1, 1)
	require.NoError(t, err)
	_ = pgx.ErrNoRows
	_ = time.Second
}
