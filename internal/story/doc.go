// Package story tells what happens to a Database's instances and nodes as lifelines: who lived from when to when, who
// was the primary, what the clients saw. The demo draws it. Everything but Watch is pure: observations go into a
// Chronicle, lines of text come out.
package story
