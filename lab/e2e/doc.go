// Package e2e holds the end-to-end tests of the lab; see lab_test.go.
package e2e
