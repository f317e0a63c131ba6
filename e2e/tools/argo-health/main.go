// Print what a health script for Argo CD makes of the object on standard input: status and message.
//
// The script is the argument. It runs as Argo CD runs it: on gopher-lua, with the object as `obj`,
// and with no library but those for tables and strings and the basic one.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	lua "github.com/yuin/gopher-lua"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(script string) error {
	var object any
	if err := json.NewDecoder(os.Stdin).Decode(&object); err != nil {
		return err
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName:   lua.OpenBase,
		lua.TabLibName:    lua.OpenTable,
		lua.StringLibName: lua.OpenString,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", value(state, object))
	if err := state.DoFile(script); err != nil {
		return err
	}
	said, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return fmt.Errorf("the script returns %s, not a table", state.Get(-1).Type())
	}
	fmt.Printf("%s: %s\n", said.RawGetString("status"), said.RawGetString("message"))
	return nil
}

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case bool:
		return lua.LBool(of)
	case float64:
		return lua.LNumber(of)
	case string:
		return lua.LString(of)
	case []any:
		table := state.NewTable()
		for _, each := range of {
			table.Append(value(state, each))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, each := range of {
			table.RawSetString(key, value(state, each))
		}
		return table
	}
	return lua.LNil
}
